"""Programs for GPUs through OpenCL: kernels of work items, their source, and the C driver that runs them."""

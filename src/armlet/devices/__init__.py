"""Routes to the machines that programs run on: this one, and an emulated board."""

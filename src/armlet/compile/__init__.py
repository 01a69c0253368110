"""The compiler: an ONNX file becomes object code with a C entry, for one target."""

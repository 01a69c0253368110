"""From an ONNX file to armlet's normal form: typed layers under the names of the ONNX graph."""

"""The ONNX graph: its operators, the decoder made of them, and the files that consumers want beside it."""

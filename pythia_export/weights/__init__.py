"""Everything about `model.onnx_data`: where each tensor is stored, how codes are packed, how it is written and read."""

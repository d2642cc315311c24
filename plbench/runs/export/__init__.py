"""A run's model for other programs: ONNX, TorchScript, safetensors, a folder for timm, the Hugging Face Hub."""

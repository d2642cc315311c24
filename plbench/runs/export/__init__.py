"""Export a run's model: ONNX, TorchScript, safetensors, a folder for timm, the Hugging Face Hub."""

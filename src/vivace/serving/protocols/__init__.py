"""The protocols that are spoken: our own, Open Inference Protocol v2, that of Hugging Face's clients."""

"""Fine-tuning of encoders: features of a photo and of a render of the same surface are brought together."""

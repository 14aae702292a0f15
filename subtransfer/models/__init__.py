"""The decoder, its kernels, adapters and tokenizers, and Hugging Face directories."""

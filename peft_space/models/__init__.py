"""What base models are made of, and how they are loaded, quantized and given an adapter."""

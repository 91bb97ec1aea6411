"""GGUF files: what llama.cpp, and all that is built on it, loads."""

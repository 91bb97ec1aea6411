"""Models as ONNX graphs: what is written for which kind of model, and how it is compared with torch."""

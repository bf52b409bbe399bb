"""vivace export --to web: a folder that classifies images in a browser, by ONNX Runtime Web."""

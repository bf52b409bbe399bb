"""Open Inference Protocol v2 over gRPC: its messages, its methods, and the server beside that for HTTP."""

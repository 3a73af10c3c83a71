"""A reranker as a REST service: Cohere's, Jina's and Text Embeddings Inference's requests, one model, one queue."""

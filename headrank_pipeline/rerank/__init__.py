"""Rerankers: recipes over the attention engine, and the face that Pyserini code expects."""

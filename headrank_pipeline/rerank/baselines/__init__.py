"""Rerankers that use a model's language-model head: RankGPT, first-token, pointwise Qwen3-Reranker."""

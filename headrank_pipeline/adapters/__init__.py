"""The rerankers as parts of other frameworks, one module each (docs/integrations.md)."""

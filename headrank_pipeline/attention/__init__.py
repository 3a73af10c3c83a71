"""From a query and its passages to one number per passage; the only rooms that see torch and transformers."""

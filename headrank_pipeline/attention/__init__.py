"""From a query and its passages to one number per passage: the engine, which knows neither Java nor files of runs."""

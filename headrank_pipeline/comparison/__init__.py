"""Finished runs against each other: tables, paired tests, analyses, pictures, and one page that holds them all."""

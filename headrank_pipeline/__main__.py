"""``python -m headrank_pipeline`` is the command ``headrank``."""

from headrank_pipeline.cli import main

if __name__ == "__main__":
    main(prog_name="headrank")

"""What a person or a monitor sees: health and metrics. Read-only views of the rest."""

"""How samples are scored under one protocol (docs/protocol.md): texts in, numbers with intervals out."""

"""What the shop calls its services: nothing of Modelyard's."""

"""What the shop calls its blueprints: nothing of Modelyard's."""

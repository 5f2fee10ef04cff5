"""The parts that all blueprints share: access, bodies, errors, streams, logs."""

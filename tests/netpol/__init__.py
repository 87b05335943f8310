"""NetworkPolicy cases as data, played in labs with real connections."""

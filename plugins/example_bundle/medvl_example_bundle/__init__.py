"""A method of one's own: what its bundle needs and no installed plugin has."""

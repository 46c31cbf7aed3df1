"""A plugin by somebody else, who follows the docs and knows no bundle: seven components, none with our options."""

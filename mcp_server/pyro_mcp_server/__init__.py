"""pyro as an MCP server: the operations as tools that a model can use."""

"""Where artifacts come from: directories, archives, URLs, hubs. Imports no tensor library."""

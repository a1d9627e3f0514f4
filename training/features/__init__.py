"""Image features of frozen backbones: extracted once, cached, read ever after."""

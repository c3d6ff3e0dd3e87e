"""The people's face: REST under /api/v1. Handlers parse, authorise and translate errors; the use cases decide."""

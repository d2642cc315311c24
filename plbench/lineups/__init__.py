"""Which runs to make: of a comparison, of a grid."""

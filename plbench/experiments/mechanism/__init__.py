"""Which mechanism may have made labels partial, and which treatment of unknown labels it asks for."""

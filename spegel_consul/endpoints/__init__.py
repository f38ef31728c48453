"""Small HTTP answers of the node: health, identity, and dial-back."""

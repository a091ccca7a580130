"""What a sweep's table says: the fitted law, the figures, sentences about them, and the page that shows them."""

"""Long studies behind the book's figures: what is measured, and how the stored measurement is drawn."""

"""What goes out to people: whom it reaches, by mail or to a webhook."""

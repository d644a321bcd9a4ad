"""Where versions are served, and how a reference's traffic is split over them."""

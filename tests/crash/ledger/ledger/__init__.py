"""An app whose numbers come out wrong when a reply is lost or counted twice."""

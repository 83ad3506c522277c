"""Sources of outputs: trained, frozen and averaged networks, banks and mixtures."""

"""What a label map is: its connected components, how it is cleaned, and its lesions."""

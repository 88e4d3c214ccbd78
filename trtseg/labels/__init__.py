"""What a label map is: its connected components, how it is cleaned, whether it is whole, and its lesions."""

"""Messages of the CA that Garrison defines or must speak: `.proto` files and the code made of them."""

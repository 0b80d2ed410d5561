// Asks for the next part; without scripts there is a button.
document.getElementById("next-part").submit();

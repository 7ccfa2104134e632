// A tap, a click or the Enter key on a figure shows it in full size; any of them, or Escape, closes it again.
(function () {
  const dialog = document.createElement("dialog");
  dialog.className = "nl-full-size";
  dialog.setAttribute("aria-label", "Figure in full size");
  const large = document.createElement("img");
  dialog.append(large);
  dialog.addEventListener("click", () => dialog.close());
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && dialog.open) dialog.close(); // the theme keeps this key to itself
  }, { capture: true });
  document.body.append(dialog);

  const open = (picture) => {
    large.src = picture.src;
    large.alt = picture.alt;
    dialog.showModal();
  };
  for (const picture of document.querySelectorAll(".bd-article .cell_output img, .bd-article figure img")) {
    picture.tabIndex = 0;
    picture.addEventListener("click", (event) => {
      event.preventDefault(); // some figures are links to their file already
      open(picture);
    });
    picture.addEventListener("keydown", (event) => {
      if (event.key === "Enter") open(picture);
    });
  }
})();

"use strict";
// A paper's page: the notebook's code cells show or hide together.
const toggle = document.getElementById("toggle-code");
if (toggle) {
  toggle.addEventListener("click", () => {
    const show = toggle.getAttribute("aria-pressed") !== "true";
    toggle.setAttribute("aria-pressed", String(show));
    toggle.textContent = show ? "Hide the notebook's code" : "Show the notebook's code";
    document.body.classList.toggle("with-code", show);
    for (const cell of document.querySelectorAll(".cell-code")) cell.open = show;
  });
}
// A link into a folded part opens it.
function unfold() {
  let node = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (; node; node = node.parentElement) if (node.tagName === "DETAILS") node.open = true;
}
window.addEventListener("hashchange", unfold);
unfold();

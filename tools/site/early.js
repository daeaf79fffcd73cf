// Before anything is drawn: the theme that was chosen, else the system's.
try {
  document.documentElement.dataset.theme =
    localStorage.getItem("theme") || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
} catch (_e) {
  document.documentElement.dataset.theme = "light";
}

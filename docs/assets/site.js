// What scrolls sideways can be reached, and scrolled, with the keyboard.
function reachable() {
  for (const part of document.querySelectorAll(".md-typeset__scrollwrap, .formula")) {
    if (part.scrollWidth > part.clientWidth) part.tabIndex = 0
    else part.removeAttribute("tabindex")
  }
}
addEventListener("load", reachable)
addEventListener("resize", reachable)

"""A finished run as one page of HTML (`uld report`): photos, landmarks, numbers, names and corrections.

gather.py   what is shown, as arrays: landmarks, how much they agree with themselves, columns, curves
write.py    the page: data and sheets of small photos put into page.html with page.css and page.js
page.*      the page itself, in plain HTML, CSS and JavaScript without a library, a server or the network
"""
